"""Importers: recordings of others, read lazily and written as episodes without encoding anything again."""
