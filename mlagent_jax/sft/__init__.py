"""The sft stage: supervised fine-tuning on expert steps."""
