"""Accounts: who signs in, how they prove who they are, and what they may do.

    link = SetUpService(appliance).first_link()                # no user yet: printed by `strongroom serve`
    done = SetUpService(appliance).complete(link.secret, "alice", password, code, origin)    # recovery codes, once
    signed_in = SignInService(appliance).sign_in("alice", password, code, origin)
    actor = SignInService(appliance).actor_of(signed_in.secret, origin)                      # at each request

All of them write down what they do: a console or an API only calls them.
"""
