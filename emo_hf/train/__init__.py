"""The fine-tuning job behind `emo-hf train`: from YAML files and options to a trained model, over Trainer and PEFT.

`config.py` reads what the user says, `tasks/` knows what differs between one kind of training and another, `train.py`
does the job, `summary.py` says what came of it. Whatever the user can put right is raised as `UserError` from
anywhere, and said at the top of the command. Nothing about optimizers or laws lives here.
"""
