"""Names of the user attributes that a study and its trials carry, as studies have had them since the first version."""

BASELINE = "landmark"
"""Which baseline a trial is: ``full`` or ``paper``; only baselines have it."""
DUPLICATE_OF = "twin"
"""Number of the trial that has the same parameters, so that this one was not run."""
VALIDATION_IMAGES = "validation_images"
"""Of the study: so many images every accuracy is of."""
