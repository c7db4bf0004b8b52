"""Suspicion."""
