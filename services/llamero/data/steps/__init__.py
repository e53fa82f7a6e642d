"""The steps of a recipe, a module each: record steps see one record, set steps look across all of them."""
