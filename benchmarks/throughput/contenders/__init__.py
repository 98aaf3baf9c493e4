"""Services with the same four routes: GET /items/{id}, GET /items, POST /items, GET /both/{id}.

Each asks the databases PRIMARY_URL and ANALYTICS_URL, and gives the same answers.
"""
