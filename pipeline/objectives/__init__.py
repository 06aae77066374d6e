"""Objectives: each turns (model, batch) into terms in nats. One file per family."""
