"""One folder a task, each with the same three files: task, loss, metrics."""
