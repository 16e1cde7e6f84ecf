"""Faults that are injected into real trainings, at moments and places drawn from a seed.

python -m tests.faults.kills --kills 100 --seed 0 --processes 2
python -m tests.faults.damages --damages 60 --seed 0 --processes 2
"""
