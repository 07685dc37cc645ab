"""Preference pairs that people bring: files and hub data sets, read, checked and split."""
