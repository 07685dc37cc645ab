"""Preference pairs and models that people bring: read, and checked before anything is trained."""
