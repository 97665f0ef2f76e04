"""What people export from besides recipe files: folders of Hugging Face models, classes with weights, exported and scripted programs."""
