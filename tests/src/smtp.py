"""A real SMTP server that keeps what it is sent: STARTTLS on one port, TLS from the start on another, both with a password."""
import signal
import ssl
import sys

from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Mailbox
from aiosmtpd.smtp import AuthResult

certificate, key, mailbox, starttls, tls, user, password = sys.argv[1:]
context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
context.load_cert_chain(certificate, key)


def judge(server, session, envelope, mechanism, given):
    right = (given.login, given.password) == (user.encode(), password.encode())
    return AuthResult(success=right, handled=False)


keep = {"auth_required": True, "authenticator": judge}
Controller(
    Mailbox(mailbox), hostname="0.0.0.0", port=int(starttls), tls_context=context, require_starttls=True, **keep
).start()
# Over TLS from the start; the library counts only STARTTLS as such.
Controller(
    Mailbox(mailbox), hostname="0.0.0.0", port=int(tls), ssl_context=context, auth_require_tls=False, **keep
).start()
print("listens", flush=True)
signal.pause()
