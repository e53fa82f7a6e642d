"""Runs beside an engine: brings adapters, checks them, loads them, proves which model answers, and tells what came of it."""
