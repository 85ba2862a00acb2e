"""Archives (PACS): what they hold and give, however they are spoken to."""
