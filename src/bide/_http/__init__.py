"""All HTTP: calls to the API, and downloads of result files. The only code that knows the HTTP library.

What enters: a `Call` with its key (`transport`), and addresses of files, which are hostile until checked (`fetcher`,
`addresses`, `guard`). What leaves: a `Reply`, the bytes of a file, or an error without key and signature. No object of
the HTTP library leaves, but for `transport=` of `Client`.
"""
