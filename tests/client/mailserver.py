"""A real mail server for tests: STARTTLS and a login are required. Prints a line of JSON for every mail it takes.

usage: mailserver.py PORT CERTIFICATE KEY PASSWORD
"""

import email
import json
import ssl
import sys
import threading

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult, LoginPassword

port, certificate, key, password = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
context.load_cert_chain(certificate, key)


class Printer:
    async def handle_DATA(self, server, session, envelope):
        message = email.message_from_bytes(envelope.content)
        print(json.dumps({
            "tls": session.ssl is not None,
            "login": session.auth_data.login.decode() if session.auth_data else None,
            "from": envelope.mail_from,
            "to": envelope.rcpt_tos,
            "headers": dict(message.items()),
            "body": message.get_payload(decode=True).decode(),
        }), flush=True)
        return "250 taken"


def login(server, session, envelope, mechanism, data):
    good = isinstance(data, LoginPassword) and (data.login, data.password) == (b"gaggled", password.encode())
    return AuthResult(success=good, handled=False, auth_data=data)


controller = Controller(
    Printer(), hostname="127.0.0.1", port=port, tls_context=context,
    require_starttls=True, auth_required=True, authenticator=login,
)
controller.start()
print(json.dumps("ready"), flush=True)
threading.Event().wait()
