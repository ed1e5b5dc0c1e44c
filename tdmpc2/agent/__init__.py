"""What learns and acts: layers, world model, planner, update, agent, checkpoints."""
