"""Metrics, costs and reports."""
