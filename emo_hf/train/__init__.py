"""The fine-tuning job behind `emo-hf train`: a thin recipe over the Trainer and PEFT."""
