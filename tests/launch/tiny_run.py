"""Settings of a run through all that launchers start, as small as can be: every execution is a worker's."""

SETTINGS = (
    "--config=configs/smoke.py",
    "--config.tasks.train=digits",
    "--config.tasks.held_out=",
    "--config.tasks.micro_train=0",
    "--config.tasks.micro_held_out=0",
    "--config.collect.trajectories=4",
    "--config.evaluate.states_held_in=0",
    "--config.evaluate.states_held_out=0",
    "--config.policy.hidden_size=16",
    "--config.policy.num_layers=1",
    "--config.policy.num_heads=2",
    "--config.policy.num_kv_heads=1",
    "--config.policy.intermediate_size=16",
    "--config.tokenizer.vocab_size=512",
    "--config.prompt.max_action_tokens=8",
    "--config.workers.sandbox=bubblewrap",
    "--config.workers.slots=0",
    "--config.sft.epochs=1",
    "--config.sft.renderings=1",
    "--config.rl.iterations=2",
    "--config.rl.states=2",
    "--config.rl.minibatches=1",
    "--config.rl.epochs=1",
    "--config.sampling.slots=8",
)
"""One task, two iterations of RL, a policy that learns nothing; the stages are left to say."""
