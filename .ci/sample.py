"""Leave a random sample of the mutants in a session of cosmic-ray."""

import random
import sqlite3
import sys

session = sqlite3.connect(sys.argv[1])
# `X | None` stands in annotations only, which nothing evaluates
rows = session.execute("SELECT job_id FROM mutation_specs WHERE operator_name NOT LIKE '%BitOr%'")
jobs = [job for (job,) in rows]
kept = [(job,) for job in random.sample(jobs, min(int(sys.argv[2]), len(jobs)))]
session.execute("CREATE TEMPORARY TABLE kept (job_id)")
session.executemany("INSERT INTO kept VALUES (?)", kept)
for table in ("work_items", "mutation_specs"):
    session.execute(f"DELETE FROM {table} WHERE job_id NOT IN kept")
session.commit()
