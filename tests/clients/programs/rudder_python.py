"""rudder-sdk-python: URL, write key and a JSON list of calls; its five lines are those of docs/clients."""

import json
import sys
from datetime import datetime

import rudderstack.analytics as analytics

url, write_key, calls = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])

analytics.write_key = write_key
analytics.dataPlaneUrl = url

NAMES = {"userId": "user_id", "anonymousId": "anonymous_id", "previousId": "previous_id", "groupId": "group_id"}
NAMES["messageId"] = "message_id"

for call in calls:
    given = {NAMES.get(name, name): value for name, value in call.items() if name != "call"}
    if "timestamp" in given:
        given["timestamp"] = datetime.fromisoformat(given["timestamp"])
    getattr(analytics, call["call"])(**given)

analytics.shutdown()  # sends what waits, and waits for the answers
