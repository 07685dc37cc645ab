"""The parts of `bench/study_peer.py`: the study by the peers' trainers."""
