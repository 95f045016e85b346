"""Results for people: a run or a label folder as one page, and the comparison of runs."""
