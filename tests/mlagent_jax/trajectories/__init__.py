"""What is recorded of a run: the tests share made-up steps."""
