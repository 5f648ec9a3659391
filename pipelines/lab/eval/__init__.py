"""What the output is worth: summaries, planted facts and translations, measured without a judge.

One run holds the product beside other ways of using the same model. Needs the extra ``eval``.
"""
