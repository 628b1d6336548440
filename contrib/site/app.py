"""An application that needs a database and a cache: it counts visits in both.

usage: app.py PORT DB_PORT DB_USER CACHE_PORT
"""

import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import psycopg2
import redis

port, db_port, db_user, cache_port = int(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])


def database():
    return psycopg2.connect(host="127.0.0.1", port=db_port, user=db_user, dbname="postgres", connect_timeout=3)


class Visits(BaseHTTPRequestHandler):
    def do_GET(self):
        connection = database()
        with connection, connection.cursor() as cursor:
            cursor.execute("UPDATE visits SET count = count + 1 RETURNING count")
            stored = cursor.fetchone()[0]
        connection.close()
        cached = redis.Redis(port=cache_port).incr("visits")
        body = f"visits: {stored} stored, {cached} cached\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


connection = database()
with connection, connection.cursor() as cursor:
    cursor.execute("CREATE TABLE IF NOT EXISTS visits (count bigint)")
    cursor.execute("INSERT INTO visits SELECT 0 WHERE NOT EXISTS (SELECT FROM visits)")
connection.close()
ThreadingHTTPServer(("127.0.0.1", port), Visits).serve_forever()
