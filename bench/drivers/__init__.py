"""Small programs, each the fetch of one contender; started as scripts by that contender's own Python."""
