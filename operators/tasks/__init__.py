"""What streams are asked for: rolling summaries (a ledger) and translations, and their prompts."""
