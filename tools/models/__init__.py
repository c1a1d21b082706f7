"""Parts of ``tools/train_models.py``: corpus, vocabulary, baseline, training, export."""
