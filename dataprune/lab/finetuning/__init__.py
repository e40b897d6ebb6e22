"""Choose what to fine-tune on: files of chats in, scores, a subset and a report out."""
