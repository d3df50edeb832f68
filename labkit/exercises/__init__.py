"""Exercises: a question, and a check that judges the answer on the learner's own run."""

from labkit.exercises.checking import Verdict, check, load, mistakes, solution

__all__ = ["Verdict", "check", "load", "mistakes", "solution"]
