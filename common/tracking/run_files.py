"""Defines the names of the files and directories in a save_dir that are not checkpoints."""

METRICS = "metrics.jsonl"
FOLLOWER_METRICS = "metrics-evaluator.jsonl"

# The W&B run id and the last step sent, one file for the trainer and one for the follower.
WANDB = "wandb.json"
FOLLOWER_WANDB = "wandb-evaluator.json"

# The launches that have started over in the directory with --overwrite_save_dir.
LAUNCHES = ".launches.jsonl"

# W&B's own files.
WANDB_DIRECTORY = "wandb"
