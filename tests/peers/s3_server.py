"""An S3-compatible store by moto on free ports of the loopback interface, with and without TLS, for as
long as its standard input is open.

Usage: s3_server.py CERTIFICATE KEY
Prints the port without TLS and the one with it.
"""

import ssl
import sys
import threading

from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server


def serve(store, context):
    """Serve on a port of its own; the port."""
    server = make_server("127.0.0.1", 0, store, threaded=True, ssl_context=context)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.port


def main(certificate, key):
    store = DomainDispatcherApplication(create_backend_app)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    print(serve(store, None), serve(store, context), flush=True)
    sys.stdin.read()


main(sys.argv[1], sys.argv[2])
