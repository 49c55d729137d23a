"""The server of the page: FastAPI over a store and a source of clips.

Every rule of collection is kept by the store; this turns requests into its calls and refusals into
statuses. No answer says which policy made a clip, nor how it is called. Knows nothing of sampling.
"""

# Annotations are read by FastAPI, those of closures too: they must be objects, not text.
import asyncio
import hmac
import unicodedata
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, RedirectResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from musicrl.preference.refusal import (
    Busy,
    Finished,
    Refusal,
    TooOften,
    UnknownPrompt,
    UnknownServing,
)
from musicrl.preference.serving import Serving
from musicrl.preference.session import COOKIE, LIFETIME_SECONDS, RateLimit, Sessions
from musicrl.preference.shield import Shield
from musicrl.preference.source import ClipSource, PoolSource
from musicrl.preference.store import Store
from musicrl.types import Choice, Side

PAGE = Path(__file__).parent / "page"
SUGGESTIONS = 6
STATUS: Mapping[type[Refusal], int] = {
    UnknownServing: 404,
    UnknownPrompt: 422,
    TooOften: 429,
    Busy: 503,
}
"""Of a refusal; any other is a conflict with what was done before: 409."""

Number = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{8,64}$")]
Seconds = Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)]


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Of the collection."""

    mode: Literal["compare", "rating"] = "compare"
    minimum_share: float = 0.5
    """Of each clip that must be heard before an answer."""
    raters_per_pair: int = 3
    max_prompt_chars: int = 300
    requests_per_minute: int = 240
    """Of a session."""
    requests_per_minute_of_address: int = 1200
    wait_seconds: float = 120.0
    """For clips that are being sampled."""
    access_token: str | None = None
    secure_cookie: bool = False


class Body(BaseModel):
    """Of a request: what is not named is refused, and nothing is converted."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Ask(Body):
    request: Number
    prompt: str | None = None


class Play(Body):
    token: Number
    event: Number
    side: Side
    started: Seconds
    ended: Seconds


class Answer(Body):
    token: Number
    choice: Choice


class Mark(Body):
    token: Number
    score: Annotated[int, Field(ge=1, le=5)]


class Admission:
    """Who may ask, and how often."""

    def __init__(self, rules: Rules, sessions: Sessions) -> None:
        self._rules, self._sessions = rules, sessions
        self._of_rater = RateLimit(rules.requests_per_minute)
        self._of_address = RateLimit(rules.requests_per_minute_of_address)

    def rater(self, request: Request) -> str:
        """The session's pseudonym. Raises a 401 without one, and TooOften."""
        self.count_address(request)
        rater = self._sessions.rater(request.cookies.get(COOKIE))
        if rater is None:
            raise HTTPException(401, "there is no session: open the page again")
        _check_rate(self._of_rater.take(rater))
        return rater

    def admit(self, request: Request) -> Response:
        """The page, with a session; where an access token is needed, for who brings it or has been
        here."""
        self.count_address(request)
        wanted, given = self._rules.access_token, request.query_params.get("token")
        if self._sessions.rater(request.cookies.get(COOKIE)) is not None and given is None:
            return FileResponse(PAGE / "index.html")
        if wanted is not None and not hmac.compare_digest(wanted.encode(), (given or "").encode()):
            return PlainTextResponse("This page is opened by the link that was given out.", 401)
        # The token leaves the address bar, and with it the browser's history.
        page = RedirectResponse("/", 303) if given else FileResponse(PAGE / "index.html")
        return self._with_session(request, page)

    def count_address(self, request: Request) -> None:
        _check_rate(self._of_address.take(request.client.host if request.client else ""))

    def _with_session(self, request: Request, page: Response) -> Response:
        if self._sessions.rater(request.cookies.get(COOKIE)) is None:
            page.set_cookie(
                COOKIE,
                self._sessions.new()[1],
                max_age=LIFETIME_SECONDS,
                httponly=True,
                samesite="lax",
                secure=self._rules.secure_cookie,
            )
        return page


def make_app(rules: Rules, store: Store, source: ClipSource, sessions: Sessions) -> FastAPI:
    """The application; it closes the source and the store at its end."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(source.close)
        store.close()

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.add_middleware(Shield)
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(HTTPException, _failed)
    admission = Admission(rules, sessions)
    _add_page(app, admission)
    _add_listening(app, rules, store, source, admission)
    _add_answers(app, rules, store, admission)
    return app


def _add_page(app: FastAPI, admission: Admission) -> None:
    @app.get("/")
    def page(request: Request) -> Response:
        return admission.admit(request)

    for name in ("page.css", "page.js", "player.js", "icon.svg"):
        app.add_api_route(f"/{name}", _file(PAGE / name))


def _add_listening(
    app: FastAPI, rules: Rules, store: Store, source: ClipSource, admission: Admission
) -> None:
    Rater = Annotated[str, Depends(admission.rater)]

    @app.get("/api/session")
    def session(rater: Rater) -> dict[str, Any]:
        return {
            "mode": rules.mode,
            "minimum_share": rules.minimum_share,
            "takes_text": source.takes_text,
            "max_prompt_chars": rules.max_prompt_chars,
            "suggestions": [prompt.text for prompt in source.suggest(SUGGESTIONS)],
            "answered": store.num_answers(rater),
        }

    @app.post("/api/offers")
    async def offer(rater: Rater, ask: Ask) -> dict[str, Any]:
        found = await run_in_threadpool(store.find, rater=rater, request=ask.request)
        if found is None:
            text = None if ask.prompt is None else clean(ask.prompt, rules.max_prompt_chars)
            try:
                found = await _offer(rules, store, source, rater, ask.request, text)
            except Finished as end:
                return {"finished": str(end)}
        return _shown(found)

    @app.get("/api/clips/{token}/{side}")
    def clip(rater: Rater, token: str, side: Side) -> Response:
        offered = store.serving(rater=rater, token=token).clips
        if side not in offered:
            raise UnknownServing
        audio = (source.folder / offered[side].wav).read_bytes()
        return Response(audio, media_type="audio/wav")

    @app.post("/api/plays")
    def play(rater: Rater, play: Play) -> dict[str, Any]:
        return {"heard": store.play(rater=rater, **play.model_dump())}


def _add_answers(app: FastAPI, rules: Rules, store: Store, admission: Admission) -> None:
    Rater = Annotated[str, Depends(admission.rater)]

    @app.post("/api/choices")
    def choose(rater: Rater, answer: Answer) -> dict[str, Any]:
        share = rules.minimum_share
        is_new = store.choose(rater=rater, minimum_share=share, **answer.model_dump())
        return {"kept": True, "new": is_new, "answered": store.num_answers(rater)}

    @app.post("/api/ratings")
    def rate(rater: Rater, mark: Mark) -> dict[str, Any]:
        share = rules.minimum_share
        is_new = store.rate(rater=rater, minimum_share=share, **mark.model_dump())
        return {"kept": True, "new": is_new, "answered": store.num_answers(rater)}


async def _offer(
    rules: Rules, store: Store, source: ClipSource, rater: str, request: str, text: str | None
) -> Serving:
    """A new offer: in mode rating one clip, else two. Raises as the source, and Busy."""
    if rules.mode == "rating":
        assert isinstance(source, PoolSource)
        one = await run_in_threadpool(source.single, rater, rules.raters_per_pair)
        return await run_in_threadpool(
            store.serve, rater=rater, request=request, prompt=one.prompt, clip_a=one.clip.id
        )
    promise = await run_in_threadpool(source.pair, rater, text)
    try:
        a, b = await asyncio.wait_for(asyncio.wrap_future(promise), rules.wait_seconds)
    except TimeoutError as fault:
        raise Busy("the clips are not ready in time: try again in a moment") from fault
    return await run_in_threadpool(
        store.serve,
        rater=rater,
        request=request,
        prompt=a.prompt,
        clip_a=a.clip.id,
        clip_b=b.clip.id,
    )


def clean(text: str, max_chars: int) -> str:
    """A typed prompt on one line, without control characters and halves of surrogate pairs.

    Raises UnknownPrompt when nothing is left or it is too long.
    """
    normal = unicodedata.normalize("NFC", text)
    seen = (" " if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") else c for c in normal)
    line = " ".join("".join(seen).split())
    if not line:
        raise UnknownPrompt("the text is empty: say what the music should be")
    if len(line) > max_chars:
        raise UnknownPrompt(f"the text is too long: {max_chars} characters at most")
    return line


def _shown(offer: Serving) -> dict[str, Any]:
    """What the page may know of an offer."""
    return {
        "token": offer.token,
        "prompt": offer.prompt.text,
        "clips": {
            side: {"url": f"/api/clips/{offer.token}/{side}", "seconds": clip.seconds}
            for side, clip in offer.clips.items()
        },
    }


def _file(path: Path) -> Any:
    def send() -> FileResponse:
        return FileResponse(path)

    return send


def _check_rate(seconds: float) -> None:
    if seconds:
        raise TooOften(seconds)


def _refused(request: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, Refusal)
    status = STATUS.get(type(refusal), 409)
    headers = {"Retry-After": "5"} if status == 503 else {}
    if isinstance(refusal, TooOften):
        headers = {"Retry-After": str(int(refusal.seconds) + 1)}
    return JSONResponse({"error": str(refusal)}, status, headers)


def _malformed(request: Request, fault: Exception) -> Response:
    """Says where the fault is and never repeats what was sent."""
    assert isinstance(fault, RequestValidationError)
    first = fault.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:] if isinstance(part, str))
    return JSONResponse({"error": f"{where or 'the request'}: {first['msg']}"[:200]}, 422)


def _failed(request: Request, fault: Exception) -> Response:
    assert isinstance(fault, HTTPException)
    return JSONResponse({"error": fault.detail}, fault.status_code, fault.headers)
