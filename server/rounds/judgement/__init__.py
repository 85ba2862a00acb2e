"""Judgement: what the updates of a round say about their sites, by length, by direction and over rounds."""
