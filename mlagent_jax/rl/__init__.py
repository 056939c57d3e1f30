"""The rooms of stage rl: where its batches come from, what is learned from them, what is told of them."""
