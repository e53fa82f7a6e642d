"""The pods of a job: what each does with its message, and how it answers."""
