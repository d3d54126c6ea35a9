"""The first five minutes: two tasks, whose images come with installed packages, on one backbone."""
