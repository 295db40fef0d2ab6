"""The server of goprog/web, by asyncio."""
import asyncio
import os
import signal
import sys
from urllib.parse import parse_qs, urlsplit

directory, port = sys.argv[1], int(sys.argv[2])
sums = {}


class Server:
    async def run(self):
        self.child = await asyncio.create_subprocess_exec("/bin/cat", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE)
        self.lock = asyncio.Lock()
        ended = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
        tcp = await asyncio.start_server(self.connection, "127.0.0.1", port)
        unix = await asyncio.start_unix_server(self.connection, os.path.join(directory, "sock"))
        await ended.wait()
        for s in (tcp, unix):
            s.close()
        self.child.stdin.close()
        return await self.child.wait()

    async def connection(self, reader, writer):
        try:
            while True:
                try:
                    head = await reader.readuntil(b"\r\n\r\n")
                except asyncio.IncompleteReadError as e:
                    if e.partial:
                        raise
                    return
                request, *lines = head.decode().split("\r\n")
                fields = dict(line.lower().split(": ", 1) for line in lines if line)
                body = await reader.readexactly(int(fields.get("content-length", 0)))
                url = urlsplit(request.split()[1])
                if url.path == "/ticks":
                    writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
                    n = 0
                    while True:
                        writer.write(b"%d\n" % n)
                        await writer.drain()
                        n += 1
                        await asyncio.sleep(0.005)
                answer = await self.answer(url, body)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer)
                await writer.drain()
        except ConnectionError:
            pass  # the client has gone; it knows why
        finally:
            writer.close()

    async def answer(self, url, body):
        if url.path == "/add":
            form = parse_qs(url.query)
            key = form["key"][0]
            sums[key] = sums.get(key, 0) + int(form["n"][0])
            return b"%d\n" % sums[key]
        if url.path == "/echo":
            return body
        if url.path == "/cat":
            async with self.lock:
                self.child.stdin.write(body)
                await self.child.stdin.drain()
                return await self.child.stdout.readline()
        raise ValueError(url.path)


sys.exit(asyncio.run(Server().run()))
