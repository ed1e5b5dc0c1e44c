"""What is done: online training, evaluation; a run's folder, its logs and checkpoints."""
