"""A debugger over recorded traces: what each of its actions leads to, and the environment in which a model predicts that."""
