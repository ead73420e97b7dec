"""What can be fine-tuned: examples from files, batches, answers and their scores; a module for each kind of task."""
