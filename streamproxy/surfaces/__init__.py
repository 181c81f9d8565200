"""Callers' wire forms: a body becomes what is wanted, frames become bytes. Pure; providers are not known here."""
