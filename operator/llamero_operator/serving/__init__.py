"""The operator's serving side: watches ModelServers, their pods and Adapters, and carries out what `lifecycle.serving` decides.

One level-triggered pass a server (`reconciler`): what is known (`store`, `observe`), what agents and chat services last said (`agents`,
`chats`), the decision, and its carrying out (`apply`, `routes`). What is asked over the network is asked beside the passes, never in them.
"""
