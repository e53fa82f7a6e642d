"""What a ModelServer comes to in the cluster, built purely: Deployment, Service, PodDisruptionBudget, HorizontalPodAutoscaler, ConfigMap."""
