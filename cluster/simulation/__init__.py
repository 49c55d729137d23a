"""The real controller over actors that compute nothing: they take the time that they are told to.

`timeline` knows when things end, `actors` what they answer, `costs` how long they take, `fleet`
where they are. A day of a cluster passes in seconds here.
"""
