"""Recipes as package data: experiments (*.yaml) and relations (relations/*.yaml)."""
