"""Names of the files in a run's directory."""

METRICS = "metrics.jsonl"
FOLLOWER_METRICS = "metrics-evaluator.jsonl"
WANDB = "wandb.json"
FOLLOWER_WANDB = "wandb-evaluator.json"
WANDB_DIRECTORY = "wandb"
