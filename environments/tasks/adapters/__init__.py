"""Tasks of other benchmarks: MLE-bench's competitions and MLAgentBench's folders."""
